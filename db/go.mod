module shop.example/db

go 1.26.0
