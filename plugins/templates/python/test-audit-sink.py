"""Unit tests; the README says how to run them. Add yours here."""

import json
import unittest
from unittest import mock

import app
from componentize_py_types import Err
from kaizen_http import Answer
from wit_world.exports.sink import Event, Outcome
from wit_world.imports.kaizen_plugin_types import Call, Error_Config, Error_Unavailable

CALL = Call("c1", json.dumps({"url": "https://logs.example.com/intake"}), "k1", 1)


DETAILS = '{"rate": 1.50, "large": 12345678901234567890}'


def event(sequence: int) -> Event:
    time = "2026-11-02T10:00:00.000000Z"
    return Event("e1", sequence, time, "o1", "user/ada", "agent.deploy", "agent/a1", Outcome.SUCCESS, DETAILS, "0" * 64)


def answer(status: int, **headers: str):
    """The far side answers this, whatever it is asked."""
    return mock.patch("app.send", return_value=Answer(status, headers, b""))


class Sink(unittest.TestCase):
    def test_events_are_sent_in_order_with_the_name_of_the_token_and_not_the_token(self):
        with answer(204) as send:
            self.assertEqual(app.Sink().deliver(CALL, [event(7), event(8)]), 2)
        method, url, headers, body = send.call_args.args
        self.assertEqual((method, url), ("POST", "https://logs.example.com/intake"))
        self.assertEqual(headers["authorization"], "Bearer {{secret:token}}")
        self.assertEqual([event["sequence"] for event in json.loads(body)["events"]], [7, 8])
        # The hash covers this very text.
        self.assertEqual(body.decode().count(DETAILS), 2)

    def test_an_expired_token_is_for_the_operator_to_fix(self):
        with answer(401), self.assertRaises(Err) as raised:
            app.Sink().deliver(CALL, [event(1)])
        self.assertIsInstance(raised.exception.value, Error_Config)

    def test_too_many_requests_are_tried_again_when_the_far_side_says(self):
        with answer(429, **{"retry-after": "7"}), self.assertRaises(Err) as raised:
            app.Sink().deliver(CALL, [event(1)])
        self.assertIsInstance(raised.exception.value, Error_Unavailable)
        self.assertEqual(raised.exception.value.value.retry_after, 7000)


if __name__ == "__main__":
    unittest.main()
