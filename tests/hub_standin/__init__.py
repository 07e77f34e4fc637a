"""A stand-in for the Hugging Face Hub on loopback: what of its HTTP interface the real client needs."""

from hub_standin.faults import Fault
from hub_standin.repository import COMMIT, Repository
from hub_standin.server import HubStandIn, serve

__all__ = ["COMMIT", "Fault", "HubStandIn", "Repository", "serve"]
