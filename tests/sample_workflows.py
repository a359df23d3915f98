"""Workflows for the client's tests, importable by worker processes."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pgqrs


@dataclass
class Order:
    what: str
    count: int
    price: Decimal
    at: datetime
    file: Path


@dataclass
class Invoice:
    order: Order
    total: Decimal


@pgqrs.step
def price(order: Order) -> Decimal:
    return order.price * order.count


@pgqrs.step
def stamp(order: Order) -> Order:
    assert isinstance(order.file, Path)
    return order


@pgqrs.workflow
def bill(order: Order) -> Invoice:
    total = price(order)
    return Invoice(stamp(stamp(order)), total)


@pgqrs.workflow
def double(x: int) -> int:
    return 2 * x


@pgqrs.step
def fail(text: str) -> None:
    raise ValueError(text)


@pgqrs.workflow
def broken(text: str) -> None:
    fail(text)


@pgqrs.handler(queue="samples")
def take(payload: object) -> None: ...
