"""What keeps the loop on its grid."""

import gc

from policies.runtime.clock import short_collections


def test_collections_leave_out_what_was_alive_before_and_look_at_it_again_afterward():
    alive = gc.get_freeze_count()
    with short_collections():
        assert gc.get_freeze_count() > alive
    assert gc.get_freeze_count() == 0
