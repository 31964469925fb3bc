module shop.example/gateway

go 1.26.0

require (
	shop.example/gen v0.0.0
	shop.example/platform v0.0.0
)

replace shop.example/gen => ../gen

replace shop.example/platform => ../platform

replace shop.example/db => ../db
