"""Clients' keys."""

import hashlib
import re

import yaml

from gateway.config import load
from gateway.keys import digest_of, new_key, yaml_lines


def test_keys_have_their_form_and_differ():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch("hg-[0-9A-Za-z]{12}-[0-9A-Za-z]{40}", key) for key in keys)


def test_the_lines_go_into_the_file_as_they_are(tmp_path):
    key = new_key()
    path = tmp_path / "h.yaml"
    path.write_text("keys:\n" + yaml_lines("team-a", key))
    (loaded,) = load(str(path), {}).to_keys()
    assert (loaded.name, loaded.digest) == ("team-a", hashlib.sha256(key.encode()).digest())
    assert yaml.safe_load(path.read_text())["keys"][0]["digest"] == digest_of(key)
    assert key not in path.read_text()
