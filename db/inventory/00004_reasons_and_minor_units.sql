-- +goose Up
-- The contracts list the reasons, and may list more tomorrow.
ALTER TABLE decision DROP CONSTRAINT decision_reason_check;

-- Prices were in hundredths of any currency; now they are in its minor units by ISO 4217: whole units, thousandths, and
-- ten-thousandths of these. Others stay as they are.
UPDATE product SET unit_price = unit_price / 100
WHERE currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF');
UPDATE product SET unit_price = unit_price * 10 WHERE currency IN ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND');
UPDATE product SET unit_price = unit_price * 100 WHERE currency IN ('CLF', 'UYW');

-- +goose Down
UPDATE product SET unit_price = unit_price / 100 WHERE currency IN ('CLF', 'UYW');
UPDATE product SET unit_price = unit_price / 10 WHERE currency IN ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND');
UPDATE product SET unit_price = unit_price * 100
WHERE currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF');
ALTER TABLE decision ADD CONSTRAINT decision_reason_check CHECK (reason IN ('OUT_OF_STOCK', 'UNKNOWN_PRODUCT', 'PRICE_CHANGED')) NOT VALID;
