"""The ring as the mint and the inspector see it: one immutable snapshot, replaced as a whole.

A reader takes the view once and works on it to the end, so it never meets half a change. The private
keys are inside its signing keys and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from tokensvc.errors import NoSigningKeyError
from tokensvc.keyring.record import KeyRecord
from tokensvc.signing import SigningKey

__all__ = ["RingView"]


class RingView:
    """Which key signs in which Region, and every key that IVS was ever seen to hold."""

    __slots__ = ("_keys_by_arn", "_longest_ttls", "_reasons", "_signing_keys")

    def __init__(
        self,
        signing_keys: Iterable[SigningKey],
        keys: Iterable[KeyRecord],
        reasons: Mapping[str, str] | None = None,
        longest_ttls: Mapping[str, float] | None = None,
    ) -> None:
        """Take one signing key per Region, the records to know, and why a Region has no key.

        `longest_ttls` are seconds by Region; a Region that is missing has no bound of its own.
        Raises ValueError for two signing keys of one Region.
        """
        by_region: dict[str, SigningKey] = {}
        for key in signing_keys:
            if key.region in by_region:
                raise ValueError(f"two keys would sign in {key.region}")
            by_region[key.region] = key
        self._signing_keys: Mapping[str, SigningKey] = MappingProxyType(by_region)
        self._keys_by_arn: Mapping[str, KeyRecord] = MappingProxyType(
            {key.arn: key for key in keys if key.arn is not None}
        )
        self._reasons: Mapping[str, str] = MappingProxyType(dict(reasons or {}))
        self._longest_ttls: Mapping[str, float] = MappingProxyType(dict(longest_ttls or {}))

    def __repr__(self) -> str:
        return f"<RingView {', '.join(self.regions) or 'without keys'}>"

    @property
    def regions(self) -> tuple[str, ...]:
        """The Regions that can sign."""
        return tuple(sorted(self._signing_keys))

    @property
    def keys(self) -> tuple[KeyRecord, ...]:
        """Every key of the ring that IVS was ever seen to hold."""
        return tuple(self._keys_by_arn.values())

    @property
    def reasons(self) -> Mapping[str, str]:
        """Regions that hold an ACTIVE key which may not sign, and why, in words."""
        return self._reasons

    def signing_key(self, region: str) -> SigningKey:
        """Return the key that signs in `region`, or raise NoSigningKeyError."""
        key = self._signing_keys.get(region)
        if key is None:
            reason = self._reasons.get(region, "None is ACTIVE.")
            raise NoSigningKeyError(f"No key signs in {region}. {reason}", region=region)
        return key

    def longest_ttl(self, region: str) -> float:
        """Return how long, in seconds, a token may live that the Region's key signs now.

        A key is deleted no earlier than this after it has stopped to sign, whatever the settings of
        the process that deletes it; so a token that is to live longer must not be signed with it.
        """
        return self._longest_ttls.get(region, float("inf"))

    def without_signing(self, reason: str) -> RingView:
        """Return this view with no key that signs, and `reason` for every Region that had one."""
        reasons = {**self._reasons, **dict.fromkeys(self._signing_keys, reason)}
        return RingView((), self._keys_by_arn.values(), reasons)

    def without_keys(self, reasons: Mapping[str, str]) -> RingView:
        """Return this view with the keys whose ARNs are in `reasons` signing nothing."""
        out = [key for key in self._signing_keys.values() if key.arn in reasons]
        return RingView(
            (key for key in self._signing_keys.values() if key.arn not in reasons),
            self._keys_by_arn.values(),
            {**self._reasons, **{key.region: reasons[key.arn] for key in out}},
            self._longest_ttls,
        )

    def key_of(self, arn: str) -> KeyRecord | None:
        """Return the key that was imported under `arn`, DELETED ones too, if it is of this ring."""
        return self._keys_by_arn.get(arn)

    def public_key_pem(self, arn: str) -> str | None:
        """Return the public half that was imported under `arn`, if it is of this ring."""
        key = self._keys_by_arn.get(arn)
        return None if key is None else key.public_key_pem
