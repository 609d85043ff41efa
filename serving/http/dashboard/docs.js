"use strict";
// The OpenAPI description of the service as a page. Everything comes from the service itself.

const METHODS = ["get", "post", "put", "patch", "delete"];

function resolved(schema, api) {
  const path = schema?.$ref?.split("/").slice(1);
  return path ? path.reduce((part, key) => part[key], api) : schema ?? {};
}

function typeName(schema, api) {
  if (schema?.$ref) return schema.$ref.split("/").at(-1);
  if (schema?.anyOf) return schema.anyOf.map((part) => typeName(part, api)).join(" or ");
  if (schema?.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" or ");
  if (schema?.type === "array") return `list of ${typeName(schema.items, api)}`;
  return schema?.format ? `${schema.type} (${schema.format})` : schema?.type ?? "anything";
}

function fields(schema, api) {
  const { properties = {}, required = [] } = resolved(schema, api);
  const rows = Object.entries(properties).map(([name, field]) => [
    element("code", {}, name), typeName(field, api), required.includes(name) ? "required" : "", field.description ?? "",
  ]);
  return rows.length ? table(["key", "type", "", "meaning"], rows) : null;
}

function contents(content, api) {
  return Object.entries(content ?? {}).flatMap(([kind, { schema }]) => [
    element("p", {}, element("code", {}, kind), schema ? ` · ${typeName(schema, api)}` : ""), fields(schema, api),
  ]);
}

function operation(method, path, what, api) {
  const parameters = (what.parameters ?? []).map((parameter) => [
    element("code", {}, parameter.name), parameter.in, typeName(parameter.schema, api),
    parameter.required ? "required" : "", parameter.description ?? "",
  ]);
  const answers = Object.entries(what.responses ?? {}).map(([status, answer]) => [
    element("code", {}, status), answer.description ?? "",
    Object.values(answer.content ?? {}).map(({ schema }) => (schema ? typeName(schema, api) : "")).filter(Boolean).join(", "),
  ]);
  return element(
    "details", {},
    element("summary", {}, element("code", {}, `${method.toUpperCase()} ${path}`), what.security ? " · token" : ""),
    element("p", {}, what.description ?? what.summary ?? ""),
    parameters.length ? table(["parameter", "in", "type", "", "meaning"], parameters) : null,
    ...contents(what.requestBody?.content, api).map((part, i) => (i ? part : element("div", {}, element("h3", {}, "Body"), part))),
    table(["status", "meaning", "body"], answers),
  );
}

async function show() {
  const answer = await fetch("openapi.json");
  if (!answer.ok) throw new Error(`openapi.json answers ${answer.status}`);
  const api = await answer.json();
  document.getElementById("about").textContent = api.info.description ?? "";
  const sections = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const method of METHODS.filter((name) => operations[name])) {
      const what = operations[method];
      const tag = what.tags?.[0] ?? "other";
      if (!sections.has(tag)) sections.set(tag, element("section", {}, element("h2", {}, tag)));
      sections.get(tag).append(operation(method, path, what, api));
    }
  }
  document.getElementById("operations").replaceChildren(...sections.values());
}

show().catch((error) => {
  document.getElementById("message").textContent = error.message;
  document.getElementById("message").hidden = false;
});
