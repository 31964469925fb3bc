module shop.example/tools/contracts

go 1.26.0
