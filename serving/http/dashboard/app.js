"use strict";

const $ = (id) => document.getElementById(id);
const STATES = ["running", "queued", "done", "failed", "cancelled"];
let token = sessionStorage.getItem("token");
let chosen = null;

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  if (options.body) headers["content-type"] = "application/json";
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    $("sign-in").hidden = false;
    $("content").hidden = true;
    throw new Error(token ? "This token is not known." : "A token is needed.");
  }
  $("sign-in").hidden = true;
  $("content").hidden = false;
  if (answer.status === 204) return null;
  const content = await answer.json();
  if (!answer.ok) throw new Error(typeof content.detail === "string" ? content.detail : content.detail[0].msg);
  return content;
}

function say(text) {
  $("message").textContent = text;
  $("message").hidden = !text;
}

// ------------------------------------------------------------------------------------------------------------- jobs

function about(job) {
  const rows = job.rows_total === null ? "" : `${whole(job.rows_done)} of ${whole(job.rows_total)} rows`;
  const parts = [job.artifact];
  if (job.state === "running") {
    parts.push(rows || "reading the input");
    if (job.rows_per_s) parts.push(`${whole(job.rows_per_s)} rows/s`);
    if (job.seconds_left !== null) parts.push(`${duration(job.seconds_left)} left`);
    if (job.cancel_requested) parts.push("cancelling");
  } else if (job.state === "done") {
    parts.push(`${whole(job.rows_done)} rows`);
    if (job.quarantined) parts.push(`${whole(job.quarantined)} quarantined`);
    parts.push(`took ${duration(job.finished_at - job.started_at)}`);
    if (job.rows_per_s) parts.push(`${whole(job.rows_per_s)} rows/s`);
  } else if (rows) {
    parts.push(rows);
  }
  const moment = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
  parts.push(new Date(job.created_at * 1000).toLocaleString([], moment));
  return parts.join(" · ");
}

function act(job, verb) {
  return async () => {
    try {
      await call(`v1/jobs/${job.id}/${verb}`, { method: "POST" });
      await showJobs();
    } catch (error) { say(error.message); }
  };
}

function short(path) {
  return path.split("/").slice(-2).join("/");
}

function jobEntry(job) {
  const busy = job.state === "running" || job.state === "queued";
  const again = job.state === "failed" || job.state === "cancelled";
  const button = (label, verb) =>
    element("button", { type: "button", "data-job": job.id + verb, "aria-label": `${label} ${short(job.source)}`, onclick: act(job, verb) }, label);
  return element(
    "li", { class: "job" },
    element(
      "div", { class: "path" },
      element("span", { title: job.source }, short(job.source)),
      element("span", { class: "arrow", "aria-label": "to" }, "→"),
      element("span", { title: job.output }, short(job.output)),
    ),
    job.state === "running"
      ? element("progress", { max: job.rows_total || 1, value: job.rows_total ? job.rows_done : null, "aria-label": `Progress of ${short(job.source)}` })
      : null,
    element("div", { class: "about" }, about(job)),
    job.error ? element("div", { class: "error" }, job.error) : null,
    element(
      "div", { class: "actions" },
      element("span", { class: `state ${job.state}` }, job.state),
      busy && !job.cancel_requested ? button("Cancel", "cancel") : null,
      again ? button("Retry", "retry") : null,
    ),
  );
}

async function showJobs() {
  const [jobs, counts] = await Promise.all([call("v1/jobs?limit=50"), call("v1/jobs/counts")]);
  const focused = document.activeElement?.dataset?.job;
  $("job-list").replaceChildren(...jobs.map(jobEntry));
  if (focused) document.querySelector(`[data-job="${focused}"]`)?.focus();
  $("no-jobs").hidden = jobs.length > 0;
  const rate = jobs.reduce((sum, job) => sum + (job.state === "running" ? job.rows_per_s || 0 : 0), 0);
  $("tiles").replaceChildren(
    ...STATES.slice(0, 4).map((state) =>
      tile(state, whole(counts[state]), state === "running" && rate ? `${whole(rate)} rows/s` : "")),
  );
  showDriftChoices(jobs);
  return jobs;
}

// ------------------------------------------------------------------------------------------------------------ model

async function showArtifacts() {
  const artifacts = await call("v1/artifacts");
  const live = artifacts.find((artifact) => artifact.live);
  chosen = artifacts.some((artifact) => artifact.name === chosen) ? chosen : live?.name ?? artifacts[0]?.name ?? null;
  $("artifact").replaceChildren(
    ...artifacts.map((artifact) =>
      element("option", { value: artifact.name, selected: artifact.name === chosen }, artifact.name + (artifact.live ? " (live)" : ""))),
  );
  $("make-live").hidden = !chosen || live?.name === chosen;
  if (chosen) await showCard();
}

async function showCard() {
  const card = await call(`v1/artifacts/${chosen}/card`);
  const [split, metrics] = Object.entries(card.metrics).at(-1) ?? ["", {}];
  const tiles = [tile("artifact", bytes(card.bytes), card.name)];
  for (const [key, name] of [["auc", "AUC"], ["gauc", "GAUC"], ["logloss", "log loss"], ["calibration", "calibration"], ["rmse", "RMSE"]]) {
    if (typeof metrics[key] === "number") tiles.push(tile(name, metrics[key].toFixed(4), split));
  }
  $("model-tiles").replaceChildren(...tiles);
  const facts = {
    features: card.training.features?.join(", "),
    rows: Object.entries(card.training.rows ?? {}).map(([name, rows]) => `${name} ${whole(rows)}`).join(", "),
    ...Object.fromEntries(Object.entries(card.training.fingerprints ?? {}).map(([name, value]) => [`${name} fingerprint`, value])),
    versions: Object.entries(card.versions).map(([name, version]) => `${name} ${version}`).join(", "),
    files: Object.entries(card.files).map(([name, size]) => `${name} ${bytes(size)}`).join(", "),
  };
  const list = element("dl");
  for (const [name, value] of Object.entries(facts)) if (value) list.append(element("dt", {}, name), element("dd", {}, value));
  $("card-body").replaceChildren(list);
  showLedger(card.sparsity?.parts ?? []);
}

function showLedger(parts) {
  parts = parts.filter((part) => part.part !== "total");
  $("ledger").hidden = parts.length === 0;
  if (!parts.length) return;
  const largest = Math.max(...parts.map((part) => part.checkpoint_bytes), 1);
  const heaviest = [...parts].sort((a, b) => b.checkpoint_bytes - a.checkpoint_bytes).slice(0, 12);
  $("ledger-chart").replaceChildren(
    bars(heaviest.map((part) => [
      part.part,
      [[part.checkpoint_bytes / largest, "ghost"], [part.artifact_bytes / largest, "main"]],
      `${bytes(part.checkpoint_bytes)} → ${bytes(part.artifact_bytes)}`,
    ])),
    element("p", { class: "legend" }, "grey: as trained · blue: in the artifact · the twelve largest parts"),
  );
  $("ledger-table").replaceChildren(table(
    ["part", "kind", "density", "trained", "artifact", "FLOPs before", "after"],
    parts.map((part) => [
      part.part, part.kind, `${(part.density * 100).toFixed(1)}%`, bytes(part.checkpoint_bytes), bytes(part.artifact_bytes),
      whole(part.flops_before), whole(part.flops_after) + (part.activations ? ` ${part.activations}` : ""),
    ]),
  ));
}

// ------------------------------------------------------------------------------------------------------------ drift

let driftReports = new Map();
let driftOf = null; // a job's id, "" for requests, null until someone has chosen: the newest job that has a report

function showDriftChoices(jobs) {
  driftReports = new Map(jobs.filter((job) => job.drift).map((job) => [job.id, job.drift]));
  $("drift-of").replaceChildren(
    element("option", { value: "" }, "requests"),
    ...jobs.filter((job) => job.drift).map((job) => element("option", { value: job.id }, `job ${short(job.source)}`)),
  );
  const newest = driftReports.keys().next().value ?? "";
  $("drift-of").value = driftOf === "" || driftReports.has(driftOf) ? driftOf : newest;
}

function verdict(psi) {
  return psi < 0.1 ? "good" : psi < 0.25 ? "warn" : "bad";
}

async function showDrift() {
  const report = driftReports.get($("drift-of").value) ?? (chosen ? await call(`v1/artifacts/${chosen}/drift`) : {});
  const psi = [
    ...Object.entries(report.scores ?? {}).map(([name, value]) => [`score ${name}`, value]),
    ...Object.entries(report.features ?? {}),
  ];
  const nothing = () => element("p", { class: "empty" }, "Nothing scored yet.");
  $("psi").replaceChildren(psi.length
    ? bars(psi.map(([name, value]) => [name, [[Math.min(value / 0.5, 1), verdict(value)]], value.toFixed(3)]))
    : nothing());
  const oov = Object.entries(report.oov ?? {});
  const widest = Math.max(0.01, ...oov.flatMap(([name, rate]) => [rate, report.oov_training?.[name] ?? 0]));
  $("oov").replaceChildren(...(oov.length
    ? [
        bars(oov.map(([name, rate]) => [
          name, [[(report.oov_training[name] ?? 0) / widest, "ghost"], [rate / widest, "main"]], `${(rate * 100).toFixed(1)}%`,
        ])),
        element("p", { class: "legend" }, "blue: scored now · grey: in training"),
      ]
    : [nothing()]));
}

// ------------------------------------------------------------------------------------------------------------- page

async function refresh() {
  let busy = false;
  try {
    const jobs = await showJobs();
    busy = jobs.some((job) => job.state === "running" || job.state === "queued");
    await showArtifacts();
    await showDrift();
    $("health").textContent = "connected";
    $("health").className = "pill good";
    say("");
  } catch (error) {
    $("health").textContent = error instanceof TypeError ? "no connection" : "not ready";
    $("health").className = "pill bad";
    if (!(error instanceof TypeError)) say(error.message);
  }
  return busy;
}

async function keepFresh() {
  const busy = document.hidden ? false : await refresh();
  setTimeout(keepFresh, busy ? 1000 : 4000);
}

$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  refresh();
});
$("open-new").addEventListener("click", () => { $("new-error").hidden = true; $("new-job").showModal(); });
$("close-new").addEventListener("click", () => $("new-job").close());
$("new-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = {
    input: $("input").value, output: $("output").value, artifact: chosen,
    options: { bad_rows: $("bad-rows").value, logits: $("logits").checked },
  };
  try {
    await call("v1/jobs", { method: "POST", body: JSON.stringify(body) });
    $("new-job").close();
    await refresh();
  } catch (error) {
    $("new-error").textContent = error.message;
    $("new-error").hidden = false;
  }
});
$("artifact").addEventListener("change", () => { chosen = $("artifact").value; refresh(); });
$("drift-of").addEventListener("change", () => { driftOf = $("drift-of").value; showDrift(); });
$("make-live").addEventListener("click", async () => {
  try {
    await call(`v1/artifacts/${chosen}/live`, { method: "POST" });
    await refresh();
  } catch (error) { say(error.message); }
});
keepFresh();
