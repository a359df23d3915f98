"""The supervisor's threads for the database, without one."""

import time

from supervisors.committing import Lease


def test_a_lease_outlives_renewals_that_take_more_than_a_third_of_it():
    """Each begins a third of the lease after the last began; from its end it would come too late."""
    lease_s, takes_s = 1.2, 0.5

    class SlowStore:
        def renew_lease(self, supervisor_id: int, lease_s: float) -> bool:
            time.sleep(takes_s)
            return True

    began = time.monotonic()
    lease = Lease(SlowStore(), 1, lease_s, lambda: None, time.monotonic, began)  # type: ignore[arg-type]
    try:
        left_s = []
        while time.monotonic() < began + 3 * lease_s:
            left_s.append(lease.until - time.monotonic())
            time.sleep(0.01)
    finally:
        lease.close()
    assert min(left_s) > 0, f"it ran out for {-min(left_s):.2f} s"
