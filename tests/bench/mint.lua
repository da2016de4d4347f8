-- wrk's side of tests/bench/over_http.py: posts mints, each for another user, and tells what came of it.
-- The API key comes in the environment, since a command line is there for all to see.

local path = os.getenv("BENCH_PATH")
local stage = os.getenv("BENCH_STAGE")
local batch = tonumber(os.getenv("BENCH_BATCH"))
local headers = {
  ["Authorization"] = "Bearer " .. os.getenv("BENCH_API_KEY"),
  ["Content-Type"] = "application/json",
}
local count = 0

local function one()
  count = count + 1
  return string.format('{"userId":"user-%d","attributes":{"team":"red"}%s}', count, "%s")
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
  return wrk.format("POST", path, headers, body)
end

function done(summary, latency, requests)
  io.stderr:write(string.format(
    '{"requests":%d,"seconds":%f,"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.requests, summary.duration / 1e6,
    summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.timeout, summary.errors.status,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
