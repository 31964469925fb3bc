import {asCSV, asJSONLines} from '/page/export.js';
import {equal} from '/tests/check.js';

const event = {id: '7', routing_key: 'shop.order.placed', status: 'error', error_message: '=1+1, "quoted"', payload: {a: 'b\nc'}};

export async function aCellIsQuotedAndNoFormula() {
  const [head, row, ...rest] = asCSV([event]).split('\r\n');
  equal([head.split(',').slice(0, 2), rest], [['id', 'published_at'], ['']]);
  equal(row, '7,,,shop.order.placed,,,,,,error,"\'=1+1, ""quoted""","{""a"":""b\\nc""}"');
}

export async function anEventIsALine() {
  const lines = asJSONLines([event, event]).split('\n');
  equal([lines.length, JSON.parse(lines[1]), lines[2]], [3, event, '']);
}
