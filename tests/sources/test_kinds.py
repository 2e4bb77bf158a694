"""The tables of what can be read, against the settings that name it."""

from typing import get_args

import pytest

from fiqa_ray.config import PairListSettings, SourceSettings
from fiqa_ray.sources.kinds import PROTOCOLS, SOURCES


@pytest.mark.parametrize(("table", "settings"), [(SOURCES, SourceSettings), (PROTOCOLS, PairListSettings)])
def test_every_kind_of_the_settings_has_a_row_and_every_option_is_a_setting(table, settings):
    assert set(table) == set(get_args(settings.model_fields["kind"].annotation))
    for row in table.values():
        assert set(row.options) <= set(settings.model_fields)
