"""Values of other libraries (NumPy, torch, pandas, polars, Arrow), none of which is loaded before its use."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from clipretrieval._util.dependencies import require
from clipretrieval.errors import InvalidInputError

__all__ = [
    *("as_array", "column_list", "data_frame", "dense_vectors", "first_missing", "is_instance"),
    *("is_missing", "is_tensor", "plain_value", "series_list", "tensor_array"),
]

_SERIES = (("pandas", "Series"), ("pandas", "Index"), ("polars", "Series"))
_EXTENSION = ("pandas.api.extensions", "ExtensionArray")
_ARROW = (("pyarrow", "Array"), ("pyarrow", "ChunkedArray"))
_NOTHING = ("NAType", "NaTType", "MaskedConstant")
"""What pandas and NumPy have beside NaN for a value that is missing."""
_PLAIN = frozenset({bool, int, float, str, type(None)})
_SHORT_FLOATS = ("bfloat", "float8", "float6", "float4")
"""How the types of ml_dtypes begin that NumPy does not know as numbers; float32 holds them exactly."""


def is_instance(obj: object, module: str, name: str) -> bool:
    """Whether `obj` is of a class of a module that may not be loaded; this never loads it."""
    cls = getattr(sys.modules.get(module), name, None)
    return isinstance(cls, type) and isinstance(obj, cls)


def is_tensor(obj: object) -> bool:
    """Whether `obj` is a torch tensor."""
    return is_instance(obj, "torch", "Tensor")


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, NaT, NA, or a masked element."""
    if value is None or type(value).__name__ in _NOTHING:
        return True
    # NaN and NaT are not equal to themselves.
    return isinstance(value, float | np.floating | np.datetime64 | np.timedelta64) and bool(value != value)


def first_missing(values: Iterable[Any]) -> int | None:
    """Return the place of the first missing value; None where there is none."""
    return next((place for place, value in enumerate(values) if is_missing(value)), None)


def tensor_array(tensor: Any, name: str) -> npt.NDArray[Any]:
    """Return the values of a dense torch tensor, wherever it lies and whatever is derived from it.

    bfloat16, which NumPy lacks, becomes float32, which holds it exactly.

    Raises
    ------
    InvalidInputError
        If it is sparse, or has no values; `name` is what the message calls it.
    """
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided:
        raise InvalidInputError(f"{name} is a sparse tensor; pass it dense, as tensor.to_dense() returns it")
    try:
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
            plain = plain.float()
        array: npt.NDArray[Any] = plain.numpy()
    except (TypeError, RuntimeError) as error:  # a tensor without data, or quantized
        raise InvalidInputError(
            f"{name} is a tensor that cannot be read ({tensor.dtype} on {tensor.device}); pass a dense one "
            "of numbers"
        ) from error
    return array


def dense_vectors(values: Any, name: str) -> Any:
    """Return vectors as NumPy can take them: tensors, also those in a list, as arrays, all else as it is.

    Raises
    ------
    InvalidInputError
        If a tensor cannot be read, or an element of a masked array is masked.
    """
    if is_tensor(values):
        return tensor_array(values, name)
    if isinstance(values, np.ma.MaskedArray):
        if np.ma.is_masked(values):
            row = int(np.argwhere(np.ma.getmaskarray(values))[0][0])
            raise InvalidInputError(f"{name} must be whole; row {row} holds a masked value")
        return values.data
    if isinstance(values, np.ndarray):
        return _without_short_floats(values)
    if isinstance(values, list | tuple) and "torch" in sys.modules and _holds_tensor(values):
        return [_untensored(row, name) for row in values]
    return values


def as_array(values: Any, name: str) -> npt.NDArray[Any]:
    """Return whatever forms an array as one.

    Raises
    ------
    InvalidInputError
        If nothing is formed: the rows differ in length, a tensor cannot be read, the matrix is sparse.
    """
    if is_instance(values, "scipy.sparse", "spmatrix") or is_instance(values, "scipy.sparse", "sparray"):
        raise InvalidInputError(f"{name} is a sparse matrix; pass it dense, as .toarray() returns it")
    try:
        return _without_short_floats(np.asarray(dense_vectors(values, name)))
    except InvalidInputError:
        raise
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        if isinstance(values, list | tuple):
            raise InvalidInputError(f"{name} must form a 2-D array; the rows differ in length") from error
        raise InvalidInputError(
            f"{name} cannot be read as an array, being of the type {type(values).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def series_list(values: Any) -> list[Any] | None:
    """Return the values of a Series, an Index, a pandas array or an Arrow array; None for anything else."""
    if any(is_instance(values, *kind) for kind in _SERIES):
        return list(values.to_list())
    if any(is_instance(values, *kind) for kind in _ARROW):
        return list(values.to_pylist())
    return [plain_value(value) for value in values] if is_instance(values, *_EXTENSION) else None


def column_list(values: Any, name: str) -> list[Any] | None:
    """Return the values of an array, tensor, Series, Index or Arrow array as a list.

    They are Python's own values where these have the same meaning. None for anything else, such as a list.

    Raises
    ------
    InvalidInputError
        If it has other than one dimension, or is a tensor that cannot be read.
    """
    if (listed := series_list(values)) is not None:
        return listed
    if is_tensor(values):
        values = tensor_array(values, name)
    elif not isinstance(values, np.ndarray):
        if not hasattr(values, "__array__") or hasattr(values, "__iter__"):
            return None
        values = np.asarray(values)
    if values.ndim != 1:
        raise InvalidInputError(
            f"{name} must be a sequence, of one dimension; found the shape {tuple(values.shape)}"
        )
    # Of a datetime64 in nanoseconds tolist() makes an int.
    plain = values.dtype.kind not in "mM" and values.dtype != np.longdouble
    return list(values.tolist()) if plain else [plain_value(value) for value in values]


def plain_value(value: Any, name: str = "a label") -> Any:
    """Return the Python value of a NumPy or Arrow scalar, or of a tensor or array of one element.

    Raises
    ------
    InvalidInputError
        If it is a tensor or array of several.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, np.datetime64 | np.timedelta64 | np.ma.core.MaskedConstant):
        return value
    if isinstance(value, np.longdouble):
        return float(value) if float(value) == value else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) or is_tensor(value):
        if tuple(value.shape) not in ((), (1,)):
            raise InvalidInputError(
                f"{name} must be one int or str; found one of the type {type(value).__name__} with the shape "
                f"{tuple(value.shape)}"
            )
        array = value if isinstance(value, np.ndarray) else tensor_array(value, name)
        return plain_value(array.reshape(-1)[0], name)
    if is_instance(value, "pyarrow", "Scalar"):
        return value.as_py()
    return value


def data_frame(columns: Mapping[str, Any], index: Any = None, index_name: str | None = None) -> Any:
    """Return a ``pandas.DataFrame`` of some columns.

    Raises
    ------
    MissingDependencyError
        If pandas is not installed.
    """
    pd = require("pandas", "to_frame", "run: pip install pandas")
    frame = pd.DataFrame(dict(columns), index=index)
    frame.index.name = index_name
    return frame


def _holds_tensor(rows: list[Any] | tuple[Any, ...]) -> bool:
    tensor: type = sys.modules["torch"].Tensor
    return any(
        isinstance(row, tensor)
        or (isinstance(row, list | tuple) and any(isinstance(value, tensor) for value in row))
        for row in rows
    )


def _untensored(row: Any, name: str) -> Any:
    if is_tensor(row):
        return tensor_array(row, name)
    return [_untensored(value, name) for value in row] if isinstance(row, list | tuple) else row


def _without_short_floats(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    short = array.dtype.kind == "V" and array.dtype.name.startswith(_SHORT_FLOATS)
    return array.astype(np.float32) if short else array
