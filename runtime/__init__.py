"""runtime"""

if __name__ != "knapper.runtime":  # the checkout root is on sys.path: refuse the short name
    raise ImportError("import knapper.runtime, not runtime")
