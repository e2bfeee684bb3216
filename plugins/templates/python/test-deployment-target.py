"""Unit tests; the README says how to run them. Add yours here."""

import json
import unittest
from unittest import mock

import app
from componentize_py_types import Err
from kaizen_http import Answer
from wit_world.exports.target import Release, State_Gone
from wit_world.imports.kaizen_plugin_types import Call, Error_Config

CALL = Call("c1", json.dumps({"url": "https://agents.example.com"}), "k1", 1)
RELEASE = Release("d1", "a1", "Support agent", 3, "staging", "{}", "0" * 64)


def answer(status: int, body: object = None):
    """The far side answers this, whatever it is asked."""
    return mock.patch("app.send", return_value=Answer(status, {}, json.dumps(body).encode()))


class Target(unittest.TestCase):
    def setUp(self):
        # Only the server has it.
        progress = mock.patch("app.progress.report")
        progress.start()
        self.addCleanup(progress.stop)

    def test_the_same_deployment_again_is_the_same_registration(self):
        with answer(200) as send:
            first = app.Target().deploy(CALL, RELEASE)
            self.assertEqual(app.Target().deploy(CALL, RELEASE), first)
        method, url, headers, _ = send.call_args.args
        self.assertEqual((method, url), ("PUT", "https://agents.example.com/agents/d1"))
        self.assertEqual(headers["authorization"], "Bearer {{secret:token}}")

    def test_what_is_gone_is_gone_and_is_undeployed(self):
        with answer(404):
            self.assertEqual(app.Target().status(CALL, "d1"), State_Gone())
            app.Target().undeploy(CALL, "d1")

    def test_an_expired_token_is_for_the_operator_to_fix(self):
        with answer(401), self.assertRaises(Err) as raised:
            app.Target().check(CALL)
        self.assertIsInstance(raised.exception.value, Error_Config)


if __name__ == "__main__":
    unittest.main()
