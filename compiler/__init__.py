"""compiler"""

if __name__ != "knapper.compiler":  # the checkout root is on sys.path: refuse the short name
    raise ImportError("import knapper.compiler, not compiler")
