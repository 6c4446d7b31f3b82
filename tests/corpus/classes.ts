# two dimensions
@problemName small
@timeStamps false
@dimensions 2
@classLabel true x y
@data
1,2,3:4,5,6:x
-1,0.5:2,1e3:y
7:8:x