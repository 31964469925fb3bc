module shop.example/services/order

go 1.26.0

require (
	shop.example/db v0.0.0
	shop.example/gen v0.0.0
	shop.example/platform v0.0.0
)

replace shop.example/gen => ../../gen

replace shop.example/platform => ../../platform

replace shop.example/db => ../../db
