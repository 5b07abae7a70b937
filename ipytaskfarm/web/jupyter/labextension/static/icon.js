// The icon, in the colours of JupyterLab's theme.

export const ICON = `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24"><g class="jp-icon3" fill="#616161">
<rect x="3" y="4" width="12" height="3.6" rx="1.8"/><rect x="7" y="10.2" width="14" height="3.6" rx="1.8"/><rect x="3" y="16.4" width="8" height="3.6" rx="1.8"/><rect x="13" y="16.4" width="8" height="3.6" rx="1.8"/></g></svg>`;
