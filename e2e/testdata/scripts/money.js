import {amount, duration, plural, price} from '/page/dom.js';
import {equal} from './check.js';

export function aPriceHasTheDecimalsOfItsCurrency() {
  for (const [money, want] of [
    [{currency_code: 'USD', units: '1000'}, '1000.00 USD'],
    [{currency_code: 'USD', units: '19', nanos: 990_000_000}, '19.99 USD'],
    [{currency_code: 'USD', nanos: 50_000_000}, '0.05 USD'],
    [{currency_code: 'JPY', units: '1200'}, '1200 JPY'],
    [{currency_code: 'KWD', units: '1', nanos: 500_000_000}, '1.500 KWD'],
  ]) equal(price(amount(money), money.currency_code), want);
}

export function aPriceBelowTheSmallestCoinIsNotRounded() {
  equal(price(amount({units: '0', nanos: 5_000_000}), 'USD'), '0.005 USD');
  equal(price(amount({units: '3', nanos: 100_000}), 'JPY'), '3.0001 JPY');
}

export function amountsAddUpExactly() {
  const dime = amount({nanos: 100_000_000});
  equal(price(dime + dime + dime, 'USD'), '0.30 USD'); // 0.1 + 0.1 + 0.1 is not 0.3
  equal(price(amount({units: '1', nanos: 150_000_000}) * 3n, 'USD'), '3.45 USD');
}

// A double has not enough digits for ten-thousandths of the highest amount, money.Max.
export function theHighestAmountIsExact() {
  equal(price(amount({units: '999999999999999'}), 'VND'), '999999999999999 VND');
  equal(price(amount({units: '9999999999999', nanos: 990_000_000}), 'USD'), '9999999999999.99 USD');
}

export function noMoneyIsNothing() {
  equal(price(amount(undefined), 'USD'), '0.00 USD');
  equal(price(amount({currency_code: 'USD'}), 'USD'), '0.00 USD');
}

export function timesAndNumbersAreWritten() {
  equal([0.4, 12.4, 1500, 180_000].map(duration), ['<1 ms', '12 ms', '1.5 s', '3 min']);
  equal([0, 1, 2].map((n) => plural(n, 'piece')), ['0 pieces', '1 piece', '2 pieces']);
}
