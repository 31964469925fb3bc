module shop.example/shop

go 1.26.0

require (
	shop.example/db v0.0.0
	shop.example/gateway v0.0.0
	shop.example/gen v0.0.0
	shop.example/platform v0.0.0
	shop.example/services/inventory v0.0.0
	shop.example/services/logging v0.0.0
	shop.example/services/order v0.0.0
)

replace shop.example/gen => ../gen

replace shop.example/platform => ../platform

replace shop.example/db => ../db

replace shop.example/gateway => ../gateway

replace shop.example/services/order => ../services/order

replace shop.example/services/inventory => ../services/inventory

replace shop.example/services/logging => ../services/logging
