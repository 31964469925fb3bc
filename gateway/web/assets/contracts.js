// Written by `make generate` from the contracts; never edited.

// keys are the routing keys of events, by the names of their messages.
export const keys = {
  CreateItems: 'shop.inventory.create',
  DecrementQuantity: 'shop.inventory.decrement.quantity',
  DeleteItems: 'shop.inventory.delete',
  ListInventory: 'shop.inventory.list',
  UpdateItems: 'shop.inventory.update',
  OperatorActed: 'shop.operator.acted',
  OrderCancelled: 'shop.order.cancelled',
  OrderConfirmed: 'shop.order.confirmed',
  OrderPlaced: 'shop.order.placed',
  OrderRejected: 'shop.order.rejected',
  StockChanged: 'shop.stock.changed',
  StockDepleted: 'shop.stock.depleted',
  WebhookDisabled: 'shop.webhook.disabled',
};

// routes say which services publish and handle an event, by its routing key. Operators publish what no service does.
export const routes = {
  'shop.inventory.create': {from: [], to: ['inventory', 'logging']},
  'shop.inventory.decrement.quantity': {from: ['order'], to: ['inventory', 'logging']},
  'shop.inventory.delete': {from: [], to: ['inventory', 'logging']},
  'shop.inventory.list': {from: ['gateway'], to: ['inventory', 'logging']},
  'shop.inventory.update': {from: [], to: ['inventory', 'logging']},
  'shop.operator.acted': {from: ['inventory', 'order', 'webhooks'], to: ['logging']},
  'shop.order.cancelled': {from: ['order'], to: ['inventory', 'logging']},
  'shop.order.confirmed': {from: ['order'], to: ['logging']},
  'shop.order.placed': {from: ['gateway'], to: ['order', 'logging']},
  'shop.order.rejected': {from: ['order'], to: ['logging']},
  'shop.stock.changed': {from: ['inventory'], to: ['logging']},
  'shop.stock.depleted': {from: ['inventory'], to: ['logging']},
  'shop.webhook.disabled': {from: ['webhooks'], to: ['logging']},
};

// states are the states of a stored order, by the routing key of the event that says that an order has come into it.
export const states = {
  'shop.order.confirmed': 'CONFIRMED',
  'shop.order.rejected': 'REJECTED',
  'shop.order.cancelled': 'CANCELLED',
};

// ways are the states that an order has been in, by its state.
export const ways = {
  PENDING: ['PENDING'],
  CONFIRMED: ['PENDING', 'CONFIRMED'],
  REJECTED: ['PENDING', 'REJECTED'],
  CANCELLED: ['PENDING', 'CONFIRMED', 'CANCELLED'],
};

// bindings are the patterns of routing keys that the queue of a service takes, by the service.
export const bindings = {
  order: ['shop.order.placed'],
  inventory: ['shop.inventory.#', 'shop.order.cancelled'],
  logging: ['shop.#'],
};

// calls are made over the broker, by services to services.
export const calls = [
  {exchange: 'shop.direct', key: 'shop.inventory.check', queue: 'inventory-rpc-queue', from: ['order'], to: 'inventory'},
];

// eventExchange is where events are published to.
export const eventExchange = 'shop.topic';
