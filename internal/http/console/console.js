"use strict";
// The console reads the same public routes as any client. Text from the server
// enters the page as text nodes only.
const $ = (id) => document.getElementById(id);
const el = (tag, attrs = {}, ...kids) => {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs)) {
    if (k === "class") e.className = v;
    else if (k === "style") Object.assign(e.style, v);
    else if (k.startsWith("on")) e.addEventListener(k.slice(2), v);
    else e.setAttribute(k, v);
  }
  e.append(...kids.filter((k) => k !== null && k !== undefined));
  return e;
};
const ms = (v) => v === null || v === undefined ? "–" : (v < 10 ? v.toFixed(2) : v.toFixed(1)) + " ms";
const pct = (v) => v === null || v === undefined ? "–" : (100 * v).toFixed(1) + " %";
const bytes = (v) => v >= 1 << 30 ? (v / (1 << 30)).toFixed(2) + " GiB" : (v / (1 << 20)).toFixed(0) + " MiB";

let key = sessionStorage.getItem("fewbit-key") || "";
async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if (key) headers.Authorization = "Bearer " + key;
  const r = await fetch(path, { ...options, headers });
  const body = r.status === 204 ? null : await r.json();
  if (!r.ok) throw Object.assign(new Error(body && body.error || r.statusText), { status: r.status });
  return body;
}

function gauge(target, q) {
  if (!q || q.p50_ms === null) return el("span", { class: "quiet" }, "no requests");
  const scale = 100 / Math.max(target * 1.25, q.p99_ms * 1.05);
  const over = q.p99_ms > target;
  return el("div", {},
    el("div", { class: "gauge", role: "img", "aria-label": `p50 ${ms(q.p50_ms)}, p99 ${ms(q.p99_ms)}, target ${ms(target)}` },
      el("i", { class: over ? "over" : "", style: { width: q.p99_ms * scale + "%" } }),
      el("i", { class: "p50", style: { width: q.p50_ms * scale + "%" } }),
      el("b", { style: { left: target * scale + "%" } })),
    el("small", { class: over ? "bad" : "quiet" }, `${ms(q.p50_ms)} / ${ms(q.p99_ms)}, target ${ms(target)}`));
}

function showModels(index, telemetry) {
  const by = new Map(telemetry.models.map((m) => [m.name + "\n" + m.version, m]));
  $("models").replaceChildren(...index.map((m) => {
    const t = by.get(m.name + "\n" + m.version);
    const w = t && t.windows["5m"], all = t && t.windows.total;
    const share = w ? w.over_target_share : null;
    return el("tr", {},
      el("td", {}, m.name),
      el("td", {}, (m.version || "") + (m.default ? " (default)" : "")),
      el("td", { class: m.state === "READY" ? "good" : "warn", title: m.reason || "" }, m.state.toLowerCase(), m.reason ? el("div", { class: "quiet" }, m.reason) : null),
      el("td", {}, t ? gauge(t.target_ms, w.phases.total) : el("span", { class: "quiet" }, "no requests")),
      el("td", { class: "num" }, all ? String(all.count) : "0"),
      el("td", { class: "num " + (share > 0.01 ? "bad" : "") }, pct(share)));
  }));
  if (index.length === 0) $("models").replaceChildren(el("tr", {}, el("td", { colspan: 6, class: "quiet" }, "No models yet: PUT /models/NAME uploads one.")));
  const names = [...new Set(index.filter((m) => m.state === "READY").map((m) => m.name))], select = $("try-model");
  if (names.join("\n") !== [...select.options].map((o) => o.value).join("\n")) {
    const was = select.value;
    select.replaceChildren(...names.map((n) => el("option", { value: n }, n)));
    if (names.includes(was)) select.value = was;
  }
}

const phases = ["queue", "prepare", "infer", "finish"];
function showPhases(telemetry) {
  const rows = telemetry.models.filter((m) => m.windows["5m"].count > 0).map((m) => {
    const q = m.windows["5m"].phases, sum = phases.reduce((s, p) => s + q[p].p50_ms, 0) || 1;
    return el("div", {},
      el("div", { class: "quiet" }, `${m.name} ${m.version}: ` + phases.map((p) => `${p} ${ms(q[p].p50_ms)}`).join(", ")),
      el("div", { class: "phase" }, ...phases.map((p) => el("span", { title: p, style: { width: 100 * q[p].p50_ms / sum + "%" } }))));
  });
  $("phases").replaceChildren(...(rows.length ? rows : [el("span", { class: "quiet" }, "No requests in the last five minutes.")]));
}

function showMachine(t) {
  const rows = [];
  const add = (name, value, reason) => rows.push(el("dt", {}, name), el("dd", {}, value === null || value === undefined ? el("span", { class: "quiet" }, reason || "not available") : value));
  const c = t.cpu, why = (o, f) => o.reasons && o.reasons[f];
  add("Processors", `${c.cores}` + (c.quota_cores ? `, limited to ${c.quota_cores}` : ""));
  add("Load", c.load_1m === null ? null : `${c.load_1m} ${c.load_5m} ${c.load_15m}`, why(c, "load_1m"));
  add("CPU power", c.power_w === null ? null : c.power_w.toFixed(1) + " W", why(c, "power_w"));
  add("CPU temperature", c.temperature_c === null ? null : c.temperature_c.toFixed(0) + " °C", why(c, "temperature_c"));
  add("Server memory", t.process.rss_bytes === null ? null : bytes(t.process.rss_bytes), why(t.process, "rss_bytes"));
  if (!t.gpu) add("GPU", null, why(t, "gpu"));
  for (const g of t.gpu || []) {
    const f = (field, unit, digits = 0) => g[field] === null ? `${field}: ${why(g, field)}` : g[field].toFixed(digits) + " " + unit;
    add(`GPU ${g.index}`, `${g.name}: ` + [f("power_w", "W"), f("temperature_c", "°C"), f("clock_sm_mhz", "MHz"), g.utilization === null ? why(g, "utilization") : pct(g.utilization), g.memory_used_bytes === null ? why(g, "memory_used_bytes") : bytes(g.memory_used_bytes)].join(", ")
      + (g.throttle_reasons && g.throttle_reasons.length ? "; " + g.throttle_reasons.join(", ") : ""));
  }
  $("machine").replaceChildren(...rows);
}

function showJobs(list) {
  const tone = { succeeded: "good", failed: "bad", running: "", queued: "quiet", cancelled: "warn" };
  const rows = list.slice(0, 20).map((j) => {
    const open = j.status === "queued" || j.status === "running";
    return el("div", { class: "job" },
      el("div", {},
        el("b", { class: tone[j.status] || "" }, j.status),
        el("span", {}, `${j.request.model} → ${j.request.scheme}` + (j.request.method ? `, ${j.request.method}` : "")),
        el("span", { class: "quiet" }, j.phase || "", j.eta_seconds ? `, ${Math.ceil(j.eta_seconds)} s left` : ""),
        el("span", { class: "quiet" }, new Date(j.submitted).toLocaleTimeString()),
        open ? el("button", { onclick: () => call("/quantize/" + encodeURIComponent(j.id), { method: "DELETE" }).then(refresh, tell) }, "Cancel") : null,
        j.status === "succeeded" && !key ? el("a", { href: "/quantize/" + encodeURIComponent(j.id) + "/report" }, "Report") : null),
      open ? el("progress", { max: 1, value: j.progress, "aria-label": "progress" }) : null,
      j.error ? el("div", { class: "bad" }, j.error) : null);
  });
  $("jobs").replaceChildren(...(rows.length ? rows : [el("span", { class: "quiet" }, "No jobs yet: POST /quantize starts one.")]));
}

function tell(err) { $("live").textContent = err.message; $("live").className = "badge bad"; }

let busy = false;
async function refresh() {
  if (busy || document.hidden) return;
  busy = true;
  try {
    const [index, telemetry, ready] = await Promise.all([call("/v2/repository/index", { method: "POST" }), call("/telemetry"), call("/v2/health/live")]);
    showModels(index, telemetry); showPhases(telemetry); showMachine(telemetry);
    $("live").textContent = ready.ready ? "ready" : "not ready";
    $("live").className = "badge " + (ready.ready ? "good" : "warn");
    $("server").textContent = `up ${Math.floor(telemetry.uptime_seconds / 60)} min`;
    try {
      showJobs((await call("/quantize")).jobs);
      $("key").hidden = true;
    } catch (err) {
      $("key").hidden = err.status !== 401;
      $("jobs").replaceChildren(el("span", { class: "quiet" }, err.message));
    }
  } catch (err) { tell(err); } finally { busy = false; }
}

$("key").addEventListener("submit", (e) => {
  e.preventDefault();
  key = $("key-value").value.trim();
  sessionStorage.setItem("fewbit-key", key);
  refresh();
});
$("try").addEventListener("submit", async (e) => {
  e.preventDefault();
  const out = $("try-answer"), start = performance.now();
  try {
    const a = await call("/v1/classify", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ model: $("try-model").value, text: $("try-text").value }) });
    const took = performance.now() - start;
    out.replaceChildren(el("p", {}, el("b", {}, a.results[0].label), ` ${pct(a.results[0].score)}, ${ms(took)} in this browser`),
      ...a.results[0].scores.slice(0, 5).map((s) => el("div", {}, el("progress", { max: 1, value: s.score, style: { width: "40%" } }), ` ${s.label} ${pct(s.score)}`)));
  } catch (err) { out.replaceChildren(el("p", { class: "bad" }, err.message)); }
});
refresh();
setInterval(refresh, 1000);
document.addEventListener("visibilitychange", refresh);
