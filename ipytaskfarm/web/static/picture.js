// Applies operations to a picture, like ipytaskfarm/view/picture.py, whose docstring describes them.

export function apply(picture, operations) {
  for (const [kind, section, value, most] of operations) {
    if (kind === "set") picture[section] = value;
    else if (kind === "put") picture[section] = { ...picture[section], ...value };
    else if (kind === "drop") {
      const entries = { ...picture[section] };
      for (const key of value) delete entries[key];
      picture[section] = entries;
    } else if (kind === "append") {
      const rows = (picture[section] || []).concat(value);
      picture[section] = rows.length > most ? rows.slice(rows.length - most) : rows;
    } else throw new Error(`a picture has no operation ${kind}`);
  }
  return picture;
}
