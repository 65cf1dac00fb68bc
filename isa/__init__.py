"""isa"""

if __name__ != "knapper.isa":  # the checkout root is on sys.path: refuse the short name
    raise ImportError("import knapper.isa, not isa")
