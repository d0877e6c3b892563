"""Links and foreign pages in a browser: each page shows plain text and loads only its own files."""

import base64
import http.client
import os
from urllib.parse import urlencode, urlsplit

import pytest
from playwright.sync_api import expect

from app.study.setup import CHOSEN
from tests.browser.conftest import OpenPage

HOSTILE = "![x](http://203.0.113.1/x.png)[Session expired](http://203.0.113.1/)<img src=http://203.0.113.1/y>"


# Of each kind of page: tests/faults/test_links.py opens all of them.
@pytest.mark.parametrize("path", ["", "prune"])
def test_links_load_nothing_foreign(path: str, open_page: OpenPage) -> None:
    """`open_page` fails on any request to anybody but the server, and on an exception that is shown."""
    names = (*CHOSEN, "layer", "threshold", "run")
    page = open_page(path, urlencode(dict.fromkeys(names, HOSTILE)))
    expect(page.get_by_text("203.0.113.1").first).to_be_visible()  # as text, on what is wrong with the link
    expect(page.locator('a[href*="203.0.113.1"], img[src*="203.0.113.1"]')).to_have_count(0)


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://{host}", "{host}", 101),
        ("http://localhost:{port}", "localhost:{port}", 101),
        ("http://127.0.0.1:1", "{host}", 403),
        ("http://localhost:1", "{host}", 403),
        ("http://example.com", "{host}", 403),
        ("http://example.com", "example.com", 403),  # a name that was made to point here
    ],
)
def test_only_pages_of_the_server_can_connect_to_it(origin: str, host: str, status: int, server: str) -> None:
    address = urlsplit(server)
    names = {"host": address.netloc, "port": address.port}
    connection = http.client.HTTPConnection(address.netloc)
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers |= {"Host": host.format(**names), "Origin": origin.format(**names)}
    headers |= {"Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode()}
    connection.request("GET", "/_stcore/stream", headers=headers)
    assert connection.getresponse().status == status
    connection.close()
