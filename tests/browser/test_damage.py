"""The Damage page in a browser: two decoder blocks of the packaged model are measured, and a mark is followed."""

import re
from urllib.parse import urlencode

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, click_mark, expect_finding, settle

SMALL = {"layers": "model.layers.28.* model.layers.29.*", "samples": "2", "length": "128", "held_out": "2"}


def test_damage_is_measured_and_a_mark_leads_to_its_layer(open_page: OpenPage) -> None:
    page = open_page("damage", urlencode(SMALL))
    expect_finding(page, "^Sensitivity is highest in", at=0)  # of the example
    page.get_by_text("Measure your own").click()
    page.get_by_role("button", name=re.compile("Measure sensitivity, about")).click()
    expect(page.get_by_text("All units together cost")).to_be_visible()
    settle(page)
    expect_finding(page, "^Sensitivity is highest in decoder block (28|29)", at=0)
    expect(page.get_by_text("Comparing held-out error with sensitivity takes five units")).to_be_visible()
    click_mark(page, page.locator(".st-key-damage-map-damage .barlayer .point").nth(1))
    expect(page).to_have_url(re.compile(r"layer=model\.layers\.29\."))
