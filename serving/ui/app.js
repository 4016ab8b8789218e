// The page's frame: what the service holds, which view is shown, the key.

import { askJson, dropKey, heldKey, holdKey, onNeed, Refused } from "./shared/api.js";
import { announce, byId, notice, plural } from "./shared/dom.js";
import { CropView } from "./views/crop/crop.js";
import { MapView } from "./views/map/map.js";
import { ModelView } from "./views/model/model.js";
import { VolumeView } from "./views/volume/volume.js";
import { SearchView } from "./views/search/search.js";

const TITLES = { volume: "Volume", map: "Map", crop: "Crop", search: "Search", model: "Model" };

class App {
  /** Ask what is served, then show the view that the address names. */
  async start() {
    onNeed(askForKey, sayBusy);
    for (const id of ["brightness", "contrast"]) {
      byId(id).addEventListener("input", ({ target }) => document.documentElement.style.setProperty(`--${id}`, target.value));
    }
    byId("key-button").addEventListener("click", () => { dropKey(); location.reload(); });
    try {
      this.info = await askJson("info");
      this.models = (await askJson("models")).models;
    } catch (problem) {
      notice(byId("starting"), problem instanceof Refused ? problem.message : String(problem), "problem");
      return;
    }
    byId("key-button").hidden = !heldKey();
    byId("review-link").hidden = !this.info.reviewed;
    if (!this.models.length) {
      const detectors = Object.keys(this.info.detectors).join(", ");
      notice(byId("starting"), `This service has no encoder, only detectors (${detectors}). The page shows what encoders make; ` +
        "POST /v1/detect finds cells.");
      return;
    }
    this.model = this.models[0];
    this.#offerModels();
    this.views = {
      volume: new VolumeView(this), map: new MapView(this), crop: new CropView(this), search: new SearchView(this), model: new ModelView(this),
    };
    addEventListener("hashchange", () => this.#route(true));
    announce(`${this.model.name}: ${plural(Object.keys(this.info.volumes).length, "volume")}, ` +
      plural(Object.keys(this.info.indexes).length, "index", "indexes"));
    this.#route(false);
  }

  /** The indexes whose vectors the chosen model makes; the others have another encoder. */
  get indexes() {
    return Object.keys(this.info.indexes).filter((name) => this.info.indexes[name].encoder === this.model.sha256);
  }

  /** Go to a view, `query` in its address. */
  go(view, query = {}) {
    const text = new URLSearchParams(query).toString();
    location.hash = text ? `${view}?${text}` : view;
  }

  #offerModels() {
    const choice = byId("model-choice");
    for (const model of this.models) choice.append(new Option(model.name, model.name));
    byId("model-field").hidden = this.models.length < 2;
    choice.addEventListener("change", () => {
      this.model = this.models.find((model) => model.name === choice.value);
      for (const view of Object.values(this.views)) view.forget?.();
      this.#route(false);
    });
  }

  #route(byPerson) {
    const [name, query] = location.hash.slice(1).split("?");
    if (name === "main") return byId("main").focus();
    const usual = Object.keys(this.info.indexes).length ? "map" : "crop";
    const view = name in this.views ? name : usual;
    for (const section of document.querySelectorAll("main > .view")) section.hidden = section.id !== view;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${TITLES[view]} · canvas-fm`;
    this.views[view].show(new URLSearchParams(query));
    if (byPerson) scrollTo(0, 0);
    if (byPerson) byId(`${view}-title`).focus({ preventScroll: true });
  }
}

/** Ask the person for a key: true once one was given. `refused` where the last one was. */
function askForKey(refused) {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  byId("key-note").textContent = refused
    ? "The service does not know this key. Give another one; it is kept in this tab until you close it."
    : "It is kept in this tab until you close it, and sent to this service alone.";
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  input.focus();
  return new Promise((resolve) => {
    byId("key-cancel").onclick = () => dialog.close("");
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      holdKey(input.value.trim());
      byId("key-button").hidden = false;
      dialog.close("given");
    };
    dialog.addEventListener("close", () => {
      input.value = "";
      resolve(dialog.returnValue === "given");
    }, { once: true });
  });
}

function sayBusy(sentence) {
  const busy = byId("busy");
  busy.hidden = !sentence;
  busy.textContent = sentence && `${sentence} …`;
}

new App().start();
