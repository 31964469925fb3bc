-- +goose Up
-- Names are in Unicode's normal form NFC from now on: orders find products by them, and what looks the same is the same.
-- One that is another product's name in that form stays as it is, for an operator to change.
UPDATE product SET name = normalize(name, NFC), version = version + 1
WHERE deleted_at IS NULL AND name IS NOT NFC NORMALIZED AND NOT EXISTS (
    SELECT FROM product other
    WHERE other.deleted_at IS NULL AND other.id <> product.id AND normalize(other.name, NFC) = normalize(product.name, NFC));

-- +goose Down
