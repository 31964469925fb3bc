module shop.example/gateway

go 1.26.0
