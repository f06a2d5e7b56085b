// Makes elements. Texts of rows become text nodes only, never markup.

export const at = id => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const count = value => value.toLocaleString("en");
export const percent = share => share.toLocaleString("en", { style: "percent", maximumFractionDigits: 1 });

// Three digits, or all before the point.
export const digits = value =>
  value.toLocaleString("en", Math.abs(value) < 1000 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 0 });

export const milliseconds = value => `${digits(value)} ms`;
