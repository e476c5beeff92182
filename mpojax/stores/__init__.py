"""Object stores: gs:// and s3:// addresses as paths, through `etils.epath` and fsspec.

A store knows whole objects and no folders: an object is put at once or not at all, nothing is
renamed, nothing appended to. What a run needs is made of that here: reads and puts that are tried
again while the store does not answer, objects that only one process can create, and copies on this
machine for libraries that read local files alone. Credentials are those that gcsfs and s3fs find.
"""

from mpojax.stores.copies import Log, array_store, fetch, put_file
from mpojax.stores.errors import attempt, explain, is_outage
from mpojax.stores.paths import SCHEMES, StorePath, at, create

__all__ = [
    "SCHEMES",
    "Log",
    "StorePath",
    "array_store",
    "at",
    "attempt",
    "create",
    "explain",
    "fetch",
    "is_outage",
    "put_file",
]
