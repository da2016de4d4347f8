-- wrk's side of tests/bench/load.py: posts mints, each for another user, and tells what came of it.
-- The API key comes in the environment, since a command line is there for all to see.

local path = os.getenv("BENCH_PATH")
local stage = os.getenv("BENCH_STAGE")
local batch = tonumber(os.getenv("BENCH_BATCH"))
local idempotency = os.getenv("BENCH_IDEMPOTENCY") == "1"
local headers = {
  ["Authorization"] = "Bearer " .. os.getenv("BENCH_API_KEY"),
  ["Content-Type"] = "application/json",
}
local run = os.getenv("BENCH_RUN")
local count = 0
local thread

-- Each thread of wrk has a state of its own, and must not count like the others.
local threads = 0
function setup(new)
  threads = threads + 1
  new:set("bench_thread", threads)
end

local function one()
  count = count + 1
  return string.format('{"userId":"user-%s-%d-%d","attributes":{"team":"red"}%%s}', run, thread, count)
end

function init()
  thread = bench_thread
end

function request()
  local body
  if batch == 1 then
    body = string.format(one(), string.format(',"stageArn":"%s"', stage))
  else
    local tokens = {}
    for i = 1, batch do
      tokens[i] = string.format(one(), "")
    end
    body = string.format('{"defaults":{"stageArn":"%s"},"tokens":[%s]}', stage, table.concat(tokens, ","))
  end
  if idempotency then
    headers["Idempotency-Key"] = string.format('"%s-%d-%d"', run, thread, count)
  end
  return wrk.format("POST", path, headers, body)
end

function done(summary, latency, requests)
  io.stderr:write(string.format(
    '{"requests":%d,"seconds":%f,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.requests, summary.duration / 1e6,
    summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.timeout, summary.errors.status,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
