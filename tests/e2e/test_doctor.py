"""`tokensvc doctor` beside a service that runs, over the wire; and what readiness says of the clock."""

from __future__ import annotations

import json

from tests.e2e.support import REGION, RunningDev, run_to_end, tokensvc_command


def test_a_running_installation_is_healthy(dev: RunningDev):
    done = run_to_end(
        tokensvc_command("doctor", "--json"),
        dev.home,
        {
            "TOKENSVC_DATA_DIR": str(dev.data_dir),
            "TOKENSVC_REGIONS": REGION,
            "TOKENSVC_PORT": str(dev.port),
            "TOKENSVC_AWS_ENDPOINT_URL": dev.emulator_url,
            "AWS_ACCESS_KEY_ID": "emulator",
            "AWS_SECRET_ACCESS_KEY": "emulator",
        },
    )
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert (told["healthy"], done.returncode) == (True, 0), told
    checks = {one["check"]: one for one in told["checks"]}
    for check in ("database", "master key", f"aws {REGION}", "clock", "callers"):
        assert checks[check]["verdict"] == "ok", checks[check]
    assert "signature verifies" in checks[f"key ring {REGION}"]["detail"]
    # The service itself is what listens there.
    assert "already in use" in checks["port"]["detail"]
    assert "AWS_ENDPOINT_URL" in json.dumps(told["checks"])


def test_readiness_compares_the_clock_with_that_of_ivs(dev: RunningDev):
    with dev.client() as client:
        checks = {one["name"]: one for one in client.get("/readyz").json()["checks"]}
        offset = client.get("/metrics").text
    assert checks["clock"]["ok"]
    assert checks["clock"]["detail"].startswith("The host's clock is ")
    assert f'tokensvc_clock_offset_seconds{{region="{REGION}"}}' in offset
