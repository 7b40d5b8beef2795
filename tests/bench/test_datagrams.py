import pytest

from tests.bench.datagram_load import BURST, DatagramFigures, DatagramPair
from tests.bench.processes import BenchError
from tests.support.ports import free_ports


@pytest.mark.parametrize("in_pieces", [True, False])
def test_bulk_datagrams_are_counted_one_by_one_however_they_are_sent(*, in_pieces: bool) -> None:
    (port,) = free_ports(1)
    with DatagramPair(port, port) as direct:
        load = direct.send_bulk(100, 0.05, in_pieces=in_pieces)
    assert load.sent % BURST == 0
    assert load.arrived == load.sent > 0
    assert load.lost_percent == 0


def test_the_share_of_lost_datagrams_is_in_percent() -> None:
    assert DatagramFigures(200, 150, 1.0).lost_percent == 25


def test_a_tunnel_that_does_not_answer_is_an_error() -> None:
    with DatagramPair(*free_ports(2)) as pair, pytest.raises(BenchError, match="0 of 200 datagrams were answered"):
        pair.warm_up(100, limit_s=0.02)


def test_a_datagram_and_its_answer_are_timed_alone_and_together() -> None:
    (port,) = free_ports(1)
    with DatagramPair(port, port) as direct:
        direct.warm_up(1200)
        found = direct.measure_delays(1200, 0.1)
    assert 0 < found.one_way_p50_us < found.round_trip_p50_us <= found.round_trip_p99_us
    assert found.count >= 100
