// Small ways to the page's elements; everything that a program may want to read has a data-testid.

export const find = (testid) => document.querySelector(`[data-testid="${testid}"]`);

// Text for people, data-value for programs; left alone where nothing changed, so that live regions stay quiet.
export function put(testid, text, value = text) {
  const element = find(testid);
  if (element.textContent !== String(text)) element.textContent = text;
  element.dataset.value = value ?? "";
  return element;
}

export function showOnly(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

export const ms = (value) => (value === null || value === undefined ? "–" : Math.round(value).toString());
