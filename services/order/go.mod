module shop.example/services/order

go 1.26.0
