"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const whole = new Intl.NumberFormat("en");
  const byId = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll("[data-image]")];
  const template = byId("choice");
  if (!template) return;

  const byName = new Map(data.names.map((name, number) => [name, number]));
  // By the number of an image: what is decided, and for a relabeling the number of the class.
  const decisions = new Map();
  let unsaved = false;

  // Storage may be forbidden, and what it holds may be anything.
  const place = `clipretrieval audit ${[...data.head, ...data.images.map((each) => each.told).join("")]
    .reduce((sum, letter) => (Math.imul(sum, 31) + letter.codePointAt(0)) | 0, 0)}`;
  const remember = () => {
    try {
      if (decisions.size) localStorage.setItem(place, JSON.stringify([...decisions]));
      else localStorage.removeItem(place);
    } catch { /* it is not remembered */ }
  };
  const recall = () => {
    try {
      for (const [image, [action, label]] of JSON.parse(localStorage.getItem(place)) || []) {
        const wanted = action === "relabel" ? data.labels[Number(label)] : ["keep", "forget"].includes(action);
        if (wanted && data.images[Number(image)]) decisions.set(Number(image), [action, label]);
      }
    } catch { /* nothing is recalled */ }
  };

  const imageOf = (card) => Number(card.dataset.image);
  const suggestedOf = (card) => (card.dataset.suggested === "" ? null : Number(card.dataset.suggested));

  const showAction = (card) => {
    const [action] = decisions.get(imageOf(card)) || [""];
    card.dataset.decided = action;
    card.querySelector(`[type="radio"][value="${action}"]`).checked = true;
  };

  const show = (card) => {
    const [action, label] = decisions.get(imageOf(card)) || [""];
    showAction(card);
    const field = card.querySelector(".class");
    const name = data.names[action === "relabel" ? label : suggestedOf(card)];
    if (document.activeElement !== field) {
      field.value = name === undefined ? "" : name;
      field.setCustomValidity("");
    }
  };

  const count = () => {
    const counts = { relabel: 0, forget: 0, keep: 0 };
    decisions.forEach(([action]) => { counts[action] += 1; });
    const left = data.images.length - decisions.size;
    byId("decided").textContent = `${whole.format(counts.relabel)} relabel, ${whole.format(counts.forget)} `
      + `forget, ${whole.format(counts.keep)} keep; ${whole.format(left)} undecided`;
    byId("save").disabled = byId("clear").disabled = !decisions.size;
  };

  const decide = (card, action, label = null) => {
    const image = imageOf(card);
    if (action) decisions.set(image, [action, label]);
    else decisions.delete(image);
    // Copies of one image cannot be of two classes; one that is kept or forgotten stays so.
    const { same } = data.images[image];
    const copies = action !== "relabel" ? [] : [...data.images.keys()].filter((each) => each !== image
      && data.images[each].same === same
      && (decisions.has(each) ? decisions.get(each)[0] === "relabel" : data.images[each].label !== label));
    copies.forEach((each) => {
      if (data.images[each].label === label) decisions.delete(each); // it has that label already
      else decisions.set(each, ["relabel", label]);
    });
    unsaved = decisions.size > 0;
    remember();
    cards.filter((each) => [image, ...copies].includes(imageOf(each))).forEach(show);
    count();
  };

  // Takes what is written in the field, if it is a class; says whether it is.
  const takeClass = (card) => {
    const field = card.querySelector(".class");
    const number = byName.get(field.value);
    field.setCustomValidity(number === undefined ? "There is no such class; choose one of the list." : "");
    if (number !== undefined) decide(card, "relabel", number);
    return number !== undefined;
  };

  const startCard = (card, number) => {
    const choice = template.content.cloneNode(true);
    const radios = [...choice.querySelectorAll('[type="radio"]')];
    radios.forEach((radio) => { radio.name = `decision-${number}`; });
    const field = choice.querySelector(".class");
    if (card.dataset.stored === "0") { // a file that cannot be read has no label to change
      choice.querySelector(".relabel").hidden = true;
    }
    radios.forEach((radio) => radio.addEventListener("change", () => {
      if (radio.value !== "relabel") decide(card, radio.value);
      else if (!takeClass(card)) field.focus();
    }));
    field.addEventListener("change", () => {
      if (!takeClass(card)) field.reportValidity();
    });
    field.addEventListener("blur", () => showAction(card)); // what is no class is no decision
    card.append(choice);
    show(card);
  };

  const filter = () => {
    const [kind, group, state] = ["by-kind", "by-class", "by-state"].map((id) => byId(id).value);
    let shown = 0;
    document.querySelectorAll(".item").forEach((item) => {
      const own = [...item.querySelectorAll("[data-image]")];
      const open = own.some((card) => !decisions.has(imageOf(card)));
      item.hidden = (kind && item.dataset.kind !== kind)
        || (group && !item.dataset.classes.split(" ").includes(group))
        || (state === "no" && !open) || (state === "yes" && !own.some((card) => decisions.has(imageOf(card))));
      shown += item.hidden ? 0 : item.querySelectorAll(".card").length;
    });
    document.querySelectorAll(".kind").forEach((section) => {
      const items = [...section.querySelectorAll(".item")];
      section.hidden = items.length ? items.every((item) => item.hidden) : Boolean(kind || group || state);
    });
    byId("shown").textContent = `${whole.format(shown)} of ${
      whole.format(document.querySelectorAll(".card").length)} images shown`;
  };

  // The parts are JSON already, written by whoever knows the labels' types.
  const text = () => {
    const copiesOf = new Map();
    data.images.forEach(({ same }, image) => {
      if (!copiesOf.has(same)) copiesOf.set(same, []);
      copiesOf.get(same).push(image);
    });
    const actionOf = (image) => (decisions.get(image) || [""])[0];
    // The label under which an image stays stored, one copy of which is forgotten; none if all are.
    const staying = (image) => {
      const { same, copies, label } = data.images[image];
      const known = copiesOf.get(same);
      const left = known.filter((each) => actionOf(each) !== "forget");
      const relabeled = left.find((each) => actionOf(each) === "relabel");
      if (relabeled !== undefined) return decisions.get(relabeled)[1];
      if (left.length) return data.images[left[0]].label;
      return copies > known.length ? label : null; // the others are not on this page
    };
    const lines = [...decisions].sort(([one], [other]) => one - other).map(([image, [action, label]]) => {
      const wanted = action === "relabel" ? label : action === "forget" ? staying(image) : null;
      const written = wanted === null ? "null" : data.labels[wanted];
      return `  {"action": "${action}", ${data.images[image].told}, "label": ${written}}`;
    });
    return `{\n ${data.head},\n "decisions": [\n${lines.join(",\n")}\n ]\n}\n`;
  };

  const save = () => {
    if (!decisions.size) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text()], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    unsaved = false;
  };

  const step = (card, by) => {
    const seen = [...document.querySelectorAll(".card")].filter((each) => each.checkVisibility());
    const next = seen[seen.indexOf(card) + by];
    if (next) next.focus();
  };

  const keys = {
    n: (card) => step(card, 1),
    p: (card) => step(card, -1),
    s: save,
  };
  const deciding = {
    k: (card) => decide(card, "keep"),
    f: (card) => decide(card, "forget"),
    u: (card) => decide(card, ""),
    r: (card) => {
      const suggested = suggestedOf(card);
      if (suggested === null) return deciding.c(card);
      decide(card, "relabel", suggested);
      return true;
    },
    c: (card) => {
      const field = card.querySelector(".class");
      field.focus();
      field.select();
      return false;
    },
  };

  // Only within a card: elsewhere a letter is somebody's own.
  document.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.matches(".class")) {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      event.preventDefault();
      const taken = event.key === "Enter" && takeClass(card);
      if (event.key === "Enter" && !taken) {
        event.target.reportValidity();
        return;
      }
      card.focus();
      show(card);
      if (taken) step(card, 1);
      return;
    }
    const stored = card.dataset.stored === "1";
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key](card);
    } else if (deciding[event.key] && card.dataset.image !== undefined) {
      event.preventDefault();
      if ("rc".includes(event.key) && !stored) return;
      if (deciding[event.key](card) !== false) step(card, 1);
    }
  });

  recall();
  cards.forEach(startCard);
  count();
  filter();
  document.querySelectorAll(".bar, .filters, .help").forEach((each) => { each.hidden = false; });
  document.querySelectorAll(".filters select").forEach((each) => each.addEventListener("change", filter));
  byId("save").addEventListener("click", save);
  byId("clear").addEventListener("click", () => {
    if (!window.confirm("Forget all decisions that were made on this page?")) return;
    decisions.clear();
    unsaved = false;
    remember();
    cards.forEach(show);
    count();
  });
  window.addEventListener("beforeunload", (event) => {
    if (unsaved) event.preventDefault();
  });
})();
