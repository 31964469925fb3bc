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

require (
	github.com/lib/pq v1.12.3
	github.com/spf13/cobra v1.10.2
	golang.org/x/sys v0.49.0
)

require (
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
)

replace shop.example/gen => ../gen

replace shop.example/platform => ../platform

replace shop.example/db => ../db

replace shop.example/gateway => ../gateway

replace shop.example/services/order => ../services/order

replace shop.example/services/inventory => ../services/inventory

replace shop.example/services/logging => ../services/logging
