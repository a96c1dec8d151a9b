"""numpy and pandas, with OpenBLAS threads."""
import json
import os
import threading

import numpy
import pandas

n = 600
a = numpy.random.default_rng(1).random((n, n))
b = numpy.linalg.inv(a) @ a
assert numpy.allclose(b, numpy.eye(n), atol=1e-6)
numpy.linalg.svd(a[:200, :200])
numpy.save("/tmp/a.npy", a)
assert (numpy.load("/tmp/a.npy", mmap_mode="r") == a).all()
os.unlink("/tmp/a.npy")
frame = pandas.DataFrame({"k": list("abab"), "v": [1, 2, 3, 4]})
assert frame.groupby("k")["v"].sum().to_dict() == {"a": 4, "b": 6}
frame.to_csv("/tmp/f.csv")
assert pandas.read_csv("/tmp/f.csv").shape == (4, 3)
pandas.date_range("2024-01-01", periods=3, tz="Europe/Berlin")
tasks = len(os.listdir("/proc/self/task"))
assert threading.active_count() == 1
print(json.dumps({"threads": tasks, "blas": int(os.environ["OPENBLAS_NUM_THREADS"])}))
