module shop.example/services/inventory

go 1.26.0
