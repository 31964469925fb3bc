-- +goose Up
-- Amounts were in hundredths of any currency; now they are in its minor units by ISO 4217: whole units, thousandths, and
-- ten-thousandths of these. Others stay as they are (docs/adr/0020).
-- +goose StatementBegin
DO $$
BEGIN
    -- Looked for first: few shops have such orders, and all have to wait for this.
    IF EXISTS (SELECT FROM orders WHERE currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF',
                                                     'BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND', 'CLF', 'UYW')) THEN
        UPDATE order_item SET unit_price = unit_price / 100 FROM orders
        WHERE orders.id = order_id AND currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF');
        UPDATE orders SET total_value = total_value / 100
        WHERE currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF');
        UPDATE order_item SET unit_price = unit_price * 10 FROM orders
        WHERE orders.id = order_id AND currency IN ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND');
        UPDATE orders SET total_value = total_value * 10
        WHERE currency IN ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND');
        UPDATE order_item SET unit_price = unit_price * 100 FROM orders
        WHERE orders.id = order_id AND currency IN ('CLF', 'UYW');
        UPDATE orders SET total_value = total_value * 100
        WHERE currency IN ('CLF', 'UYW');
    END IF;
END
$$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
DO $$
BEGIN
    -- Looked for first: few shops have such orders, and all have to wait for this.
    IF EXISTS (SELECT FROM orders WHERE currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF',
                                                     'BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND', 'CLF', 'UYW')) THEN
        UPDATE order_item SET unit_price = unit_price * 100 FROM orders
        WHERE orders.id = order_id AND currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF');
        UPDATE orders SET total_value = total_value * 100
        WHERE currency IN ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'UYI', 'VND', 'VUV', 'XAF', 'XOF', 'XPF');
        UPDATE order_item SET unit_price = unit_price / 10 FROM orders
        WHERE orders.id = order_id AND currency IN ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND');
        UPDATE orders SET total_value = total_value / 10
        WHERE currency IN ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND');
        UPDATE order_item SET unit_price = unit_price / 100 FROM orders
        WHERE orders.id = order_id AND currency IN ('CLF', 'UYW');
        UPDATE orders SET total_value = total_value / 100
        WHERE currency IN ('CLF', 'UYW');
    END IF;
END
$$;
-- +goose StatementEnd
