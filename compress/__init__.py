"""What happens to visual tokens before the language model, one file per method.

Every module here is imported with the package, so that its method is known by name.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
