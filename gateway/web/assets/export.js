// Events as files, for programs that read tables or lines.

const columns = ['id', 'published_at', 'created_at', 'routing_key', 'source', 'order_id', 'message_id', 'trace_id', 'attempt', 'status', 'error_message', 'payload'];

// cell is a value as RFC 4180 has it. A spreadsheet would calculate what begins like a formula: it is made a text.
function cell(value) {
  let text = value == null ? '' : typeof value === 'object' ? JSON.stringify(value) : String(value);
  if (/^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export const asCSV = (events) => [columns, ...events.map((event) => columns.map((name) => event[name]))].map((row) => `${row.map(cell).join(',')}\r\n`).join('');

export const asJSONLines = (events) => events.map((event) => `${JSON.stringify(event)}\n`).join('');

// save lets the browser save text, or a blob, as a file.
export function save(name, type, content) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([content], {type}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
