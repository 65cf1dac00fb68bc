"""frontends"""

if __name__ != "knapper.frontends":  # the checkout root is on sys.path: refuse the short name
    raise ImportError("import knapper.frontends, not frontends")
