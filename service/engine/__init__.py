"""The engine: workers own a device and know nothing of HTTP or of the store."""

from .engine import BUILD as BUILD
from .engine import Engine as Engine
from .engine import Logits as Logits
from .engine import Pictures as Pictures
from .engine import Sight as Sight
from .engine import find_device as find_device
from .errors import DeadlinePassed as DeadlinePassed
from .errors import Draining as Draining
from .errors import QueueFull as QueueFull
from .errors import ServingError as ServingError
from .errors import VersionFailed as VersionFailed
from .figures import Distribution as Distribution
from .figures import Figure as Figure
from .layout import DTYPES as DTYPES
from .operators import Kernels as Kernels
from .overlay import DeviceOverlay as DeviceOverlay
from .slots import Slots as Slots
from .threads import computing_in as computing_in
