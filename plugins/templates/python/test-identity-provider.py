"""Unit tests; the README says how to run them. Add yours here."""

import json
import unittest

import app
from componentize_py_types import Err
from wit_world.exports.provider import Grant, Identity
from wit_world.imports.kaizen_plugin_types import Call, Error_Rejected

CALL = Call("c1", json.dumps({"issuer": "https://id.example.com", "client_id": "kaizen"}), "k1", 1)


def identify(**claims: object) -> Identity:
    return app.Provider().identify(CALL, Grant(json.dumps(claims), None))


class Provider(unittest.TestCase):
    def test_an_address_is_verified_only_where_the_claim_says_so(self):
        self.assertTrue(identify(sub="1", email="ada@example.com", email_verified=True).email_verified)
        for said in (None, False, "true", 1):
            self.assertFalse(identify(sub="1", email="ada@example.com", email_verified=said).email_verified)

    def test_groups_of_another_type_are_none(self):
        self.assertEqual(identify(sub="1", groups=["engineering", 7]).groups, ["engineering"])
        self.assertEqual(identify(sub="1", groups="engineering").groups, [])

    def test_nobody_signs_in_without_a_subject(self):
        with self.assertRaises(Err) as raised:
            identify(email="ada@example.com")
        self.assertIsInstance(raised.exception.value, Error_Rejected)


if __name__ == "__main__":
    unittest.main()
