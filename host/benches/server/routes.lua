-- wrk -s routes.lua URL -- ROUTE: get_agent | list_agents | create_agent
-- Goes round all targets (2,000 agents, 500 people, 100 organizations), each with its own token.
local routes = {
  get_agent = function(t) return "GET", "/api/v1/agents/" .. t.agent end,
  list_agents = function() return "GET", "/api/v1/agents?limit=50" end,
  create_agent = function(t)
    return "POST", "/api/v1/agents", ('{"name":"Bench agent","description":"Made by wrk.","workspace_id":"%s",'
      .. '"settings":{"model":"large-v1","temperature":0.2,"max_tokens":2048,"tools":["search","calculator"]}}'):format(t.workspace)
  end,
}

local requests, at = {}, 0

function init(args)
  for line in io.lines(os.getenv("SEED_DIR") .. "/targets.tsv") do
    local token, agent, workspace = line:match("(%S+)\t(%S+)\t(%S+)")
    local method, path, body = routes[args[1]]({ agent = agent, workspace = workspace })
    local headers = { Authorization = "Bearer " .. token, ["Content-Type"] = body and "application/json" }
    requests[#requests + 1] = wrk.format(method, path, headers, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local e = summary.errors
  print(('{"req_s":%.1f,"p50_ms":%.2f,"p99_ms":%.2f,"errors":%d,"requests":%d}'):format(summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, e.connect + e.read + e.write + e.timeout + e.status, summary.requests))
end
