"""The policy builder, without guests."""

from __future__ import annotations

import copy
import pickle
import unittest
from typing import Any, Dict, List, Tuple

import pyisolate as psi
from pyisolate._request import imports_field, policy_fields
from pyisolate.policy import Policy


class Builder(unittest.TestCase):
    def test_modifiers_return_copies(self) -> None:
        base = Policy(mem="256MiB")
        wider = base.allow_fs("/srv/data").allow_tcp("10.0.0.0/8:5432").allow_import("math").deny_fs("/srv/data/key")
        self.assertEqual(base.to_dict(), {"mem": "256MiB"})
        self.assertEqual(wider.fs, ["/srv/data", {"deny": "/srv/data/key"}])
        self.assertEqual(wider.tcp, ["10.0.0.0/8:5432"])
        network = wider.deny_tcp("10.9.0.0/16:5432").allow_tcp("*.example.org:8000-8100", private=True)
        rules = [{"deny": "10.9.0.0/16:5432"}, {"allow": "*.example.org:8000-8100", "private": True}]
        self.assertEqual(network.tcp, ["10.0.0.0/8:5432", *rules])
        network = network.allow_udp("10.0.0.53:53").deny_udp("10.0.0.54:53")
        self.assertEqual(network.udp, ["10.0.0.53:53", {"deny": "10.0.0.54:53"}])
        self.assertEqual(Policy.from_dict(network.to_dict()), network)
        self.assertEqual(wider.imports, ["math"])
        self.assertIsNone(base.imports)
        wider.fs.append("/etc")
        wider.to_dict()["fs"].append("/etc")
        self.assertEqual(len(wider.fs), 2)

    def test_a_policy_does_not_change(self) -> None:
        policy = Policy(cpu=0.5)
        with self.assertRaises(AttributeError):
            policy.mem = "1GiB"
        with self.assertRaises(AttributeError):
            policy._document = {}
        with self.assertRaises(AttributeError):
            del policy._document

    def test_modes(self) -> None:
        self.assertEqual(Policy().allow_fs("/a").allow_fs("/b", "rw").allow_fs("/c", mode="r").fs, ["/a", {"write": "/b"}, "/c"])
        with self.assertRaisesRegex(psi.PolicyError, '"rw"'):
            Policy().allow_fs("/a", "w")

    def test_to_and_from_a_document(self) -> None:
        document: Dict[str, Any] = {
            "mem": "256MiB", "cpu": 0.5, "cpu_ms": 10000, "wall_ms": 60000, "pids": 64, "open_files": 256,
            "tmp": "64MiB", "message": 1 << 20, "output": "1MiB", "allow_degraded": False,
            "fs": ["/srv/data/*.parquet", {"write": "/srv/out/**"}], "tcp": ["127.0.0.1:9200"], "imports": ["math"],
        }  # fmt: skip
        policy = Policy.from_dict(document)
        self.assertEqual(policy.to_dict(), document)
        for twin in (Policy.from_dict(policy.to_dict()), copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
            self.assertEqual(twin, policy)
            self.assertEqual(hash(twin), hash(policy))
        self.assertNotEqual(policy, policy.allow_import("json"))
        self.assertEqual(eval(repr(policy), {"Policy": Policy}), policy)

    def test_mistakes_are_named(self) -> None:
        mistakes: List[Tuple[Any, str]] = [
            ({"memory": 1}, "'memory'.*mem"),
            ({"mem": -1}, "mem"),
            ({"mem": 1.5}, "256MiB"),
            ({"cpu": "half"}, "0.5"),
            ({"cpu": float("nan")}, "cpu"),
            ({"pids": True}, "pids"),
            ({"fs": "/srv"}, "list"),
            ({"fs": ["srv"]}, "absolute"),
            ({"fs": ["/srv/../etc"]}, r"\.\."),
            ({"fs": [{"write": 1}]}, "text"),
            ({"fs": [{"exec": "/a"}]}, "write"),
            ({"fs": [{"write": "/a", "read": "/b"}]}, "write"),
            ({"tcp": ["localhost"]}, "host:port"),
            ({"tcp": ["localhost:0"]}, "65535"),
            ({"tcp": ["localhost:99999"]}, "65535"),
            ({"tcp": [9200]}, "host:port"),
            ({"tcp": ["a.example:90-80"]}, "65535"),
            ({"tcp": [{"deny": "a.example"}]}, "65535"),
            ({"tcp": [{"allow": "a.example:1", "private": "yes"}]}, "private"),
            ({"tcp": [{"deny": "a.example:1", "private": True}]}, "private"),
            ({"imports": ["a b"]}, "dotted"),
            ({"imports": [""]}, "dotted"),
            ({"allow_degraded": 1}, "true or false"),
            ([1], "mapping"),
        ]
        for wrong, says in mistakes:
            with self.subTest(wrong=wrong), self.assertRaisesRegex(psi.PolicyError, says):
                Policy.from_dict(wrong)


class Requests(unittest.TestCase):
    def test_forms_of_a_policy(self) -> None:
        self.assertEqual(policy_fields(None), {"policy_name": "defaults"})
        self.assertEqual(policy_fields("compute-only"), {"policy_name": "compute-only"})
        self.assertEqual(policy_fields(Policy(pids=3)), {"policy": {"pids": 3}})
        self.assertEqual(policy_fields({"pids": 3}), {"policy": {"pids": 3}})
        for missing in ("./none.yaml", "none.yml", "none.json", "/none/defaults"):
            with self.assertRaisesRegex(psi.PolicyError, f"{missing}.*No such file"):
                policy_fields(missing)
        with self.assertRaises(psi.PolicyError):
            policy_fields(5)  # type: ignore[arg-type]

    def test_allowed_imports(self) -> None:
        self.assertEqual(imports_field([]), [])
        self.assertEqual(imports_field(("math", "os.path")), ["math", "os.path"])
        with self.assertRaisesRegex(psi.PolicyError, r"\['math'\]"):
            imports_field("math")


if __name__ == "__main__":
    unittest.main()
