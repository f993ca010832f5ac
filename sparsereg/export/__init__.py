"""The cut network as files, and what that gained."""

import sys

from sparsereg import CallableModule

sys.modules[__name__].__class__ = CallableModule  # `sparsereg.export(net, …)` works too
